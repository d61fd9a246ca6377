"""What each format's bytes say of an image: one file per idea, put together by `image_decoding`."""
