"""`--mode=check_data`: reads a data set as training will, and says what is wrong with it."""
