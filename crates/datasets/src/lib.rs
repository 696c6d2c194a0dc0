//! Re-identification data sets: the Emoji-ID set that ships with consonance, and folders laid out like Market-1501.
