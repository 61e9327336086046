"""Clips of video: what is done in them, told by any number of heads, from frames, optical flow, depth, object boxes or sound."""

from stillroom.tasks.video.batches import VideoBatch
from stillroom.tasks.video.data import VideoData
from stillroom.tasks.video.loaded import LoadedVideo, load
from stillroom.tasks.video.models import build_video_network
from stillroom.tasks.video.supervised import Supervised, VideoDistiller, averaged_logits
from stillroom.tasks.video.task import EPIC, SMALL, SOMETHING, TASK

__all__ = [
    "EPIC",
    "SMALL",
    "SOMETHING",
    "TASK",
    "LoadedVideo",
    "Supervised",
    "VideoBatch",
    "VideoData",
    "VideoDistiller",
    "averaged_logits",
    "build_video_network",
    "load",
]
