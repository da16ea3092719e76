"""What services that relay our mail report by HTTP: read, after their signatures were checked, into one form."""
