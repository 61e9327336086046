"""Several dense targets of one picture: classes, depth, normals, edges."""
