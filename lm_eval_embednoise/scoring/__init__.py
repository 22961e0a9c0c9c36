"""From K generated texts to numbers: extract, judge, count, compare, reduce, aggregate."""
