"""Everything that runs offline: training, evaluation, prediction, and the import and export of heads.

The robot's package `dinov3_seg_ros` never imports this one; a bundle passes from one to the other. The modules here are
the commands. The rooms, from the ground up, import only the rooms above them in this list:

- support: what all rooms share, such as errors of writing, processes, random numbers, the base of settings
- data: data sets, their classes and their content
- checks: what is wrong with a data set, before a training starts
- samples: augmented training samples, their batches, and cached features
- losses, optimization: what training minimises, and how it updates the weights
- evaluation: averaged views of an image, and scores
- unlabelled: images without labels: described, chosen, labelled by a teacher
- reports: pictures and tables for people
- prediction: frames of any source through a bundle, and what is written of each
- recipes: the schema of recipes, the recipes themselves, and overrides from the command line
- loop: the training itself, from a recipe to bundles
- sharing: bundles to the Hugging Face Hub: what may be shared, the upload
- cluster: work on many processes, by Ray
"""
