"""What `embednoise` does beside running and studying: doctor, generations, regenerate."""
