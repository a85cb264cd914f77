"""The optimizer (NorMuon and AdamW in one), its recipe and its schedule."""
