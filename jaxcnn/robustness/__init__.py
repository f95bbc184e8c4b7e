"""Networks under attack, on corrupted images, and on images of other kinds."""
