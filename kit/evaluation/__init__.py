"""What models are worth: bootstrap, Table 1, fusion, blend, studies (floor 5)."""
