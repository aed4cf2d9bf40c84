"""LightningDataModules for medical visual question answering, one per imaging modality."""
