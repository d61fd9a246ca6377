"""How good a model is: reconstruction metrics, PCA beside them, codes of unseen images, nearest neighbors."""
