"""H1: does the number of anomaly filters rise with overfitting, and does anything else?"""
