"""Files that other runtimes run; each is run and measured once it has been written."""
