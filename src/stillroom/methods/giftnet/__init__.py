"""GiftNet - Deep Image Harmonization with Globally Guided Feature Transformation and Relation Distillation."""
