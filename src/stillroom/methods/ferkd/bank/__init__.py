"""Label banks: many stored crops of every image, with the soft labels that a teacher gave them.

`labels` holds how a label is written down, `folder` the files, `writer` the writing by any number of processes, `reader` a finished bank,
`released` the layout in which FKD's banks were released.
"""
