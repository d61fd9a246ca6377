"""Decoder, codes and priors of a run -> grids of images."""

from jobs.cli import main
from pipelines.rendering import RenderJob, render

if __name__ == "__main__":
    main("render", RenderJob, render)
