"""The guided tour: from nothing to a detector of things it never had a box for."""
