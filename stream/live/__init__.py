"""What `unmask live` needs besides the stages: feeds, outputs, and how a run of them is carried out."""
