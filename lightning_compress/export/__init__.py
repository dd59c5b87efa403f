"""Export to the file formats of other runtimes; every file is run, compared with the model and timed once written."""
