"""Made-up abdomens in the Decathlon layout."""
