"""What a user gives: pictures, clips, questions."""
