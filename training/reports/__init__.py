"""Reports for people: pictures, tables and the folder of an evaluation."""
