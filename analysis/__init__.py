"""From result folders to a decision: paired statistics, Pareto front, verdict, report."""
