"""Image harmonization: a foreground that was cut from another photo gets the light of the photo that it was pasted into."""
