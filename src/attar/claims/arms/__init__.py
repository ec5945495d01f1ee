"""Methods with one part taken out, for claims that say the part is needed. No method of the catalogue imports these."""
