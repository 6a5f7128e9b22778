"""How good labels are: measures, scores, pictures."""
