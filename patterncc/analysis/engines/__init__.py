"""The reach engines behind one interface, and what they are made of."""
