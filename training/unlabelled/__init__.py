"""Images without labels: found, described, chosen among, and labelled by a teacher."""
