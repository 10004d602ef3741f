"""H3: does masking anomaly filters improve generalisation?"""
