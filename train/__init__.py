"""The training ground: data, synthetic masks, losses, loops, evaluation, export. Where to find what:

data      `data` crops and batches; `listings` lists of published data sets; `dataset` pairs, a person's frames, checks;
          `pseudo` labels for real masked faces; `tracker_data` the detector's; `pins` hashes; `video` frames of videos
pictures  `masks` and `materials` synthetic masks; `regions` other parts of faces; `turning` heads in three dimensions;
          `augmentation` by kornia; `views` as the detector sees them; `sheets` to look at
recipes   `config` what they may say; `registry` which model is trained by what; `recipes/` those that ship
training  `loop` the one that all runs share; `objectives` losses by name put together; `losses`, `identity` what they
          compute; `optimizers`; `processes` several GPUs; `mlflow_log` the record
trainers  `inpainter`, `segmenter`, `unmasker` (both at once), `detector`, `personal` (one person's inpainter)
after     `campaign` overfit, cross-validate, tune; `compare`; `evaluate` what ships, `evaluate_run` a run;
          `instruments` that judge; `demo` makes a clip and measures it
"""
