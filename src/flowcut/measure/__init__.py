"""What a run costs and answers: timing, one question with and without a method, several methods."""
