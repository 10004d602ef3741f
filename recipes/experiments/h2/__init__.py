"""H2: do outlier samples drive overfitting?"""
