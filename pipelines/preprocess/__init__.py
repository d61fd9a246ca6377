"""Preprocessing: folders of image files -> dataset, again for every new folder."""
