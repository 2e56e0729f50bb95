"""What a study is: runs, arms, comparisons, claims, and what they come to."""
