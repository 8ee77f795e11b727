"""The experiments of "Agree to Disagree", run, and what came out beside what was published."""
