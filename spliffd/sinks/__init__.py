"""Other places that exchanges can be sent to."""
