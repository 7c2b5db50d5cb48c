"""Downloads over https: files and zip archives, verified by sha256, and pickles read without running them."""
