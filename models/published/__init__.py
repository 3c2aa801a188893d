"""Networks from papers, to compare with: they train and are evaluated, and are not shipped. The docstring of each says
what was left out."""
