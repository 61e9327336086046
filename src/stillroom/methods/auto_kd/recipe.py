from stillroom.methods.auto_kd.searched import ROOM, recipe
