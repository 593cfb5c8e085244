"""In which order teachers are to teach: adaptation cost between their features, then backward greedy selection."""
