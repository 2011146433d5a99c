"""What a person looks at: previews of data, in the terminal and as a page."""
