"""The training ground: data, synthetic masks, losses, loops, evaluation, export. Where to find what:

data      `data` crops and batches; `listings` lists of published data sets; `dataset` pairs, a person's frames, checks;
          `pseudo` labels for real masked faces; `tracker_data` the detector's; `pins` hashes;
          `files` that appear whole; `video` frames of videos
by eye    `ages` how old faces look; `loop_lines` ear loops of real faces; `profiles` real faces in profile; and `skins`
          how dark a skin looks, by its colour
pictures  `masks` and `materials` synthetic masks, `fabrics` printed ones; `glasses`; `regions` other parts of faces;
          `turning` heads in three dimensions; `symmetry` mirror images; `augmentation` by kornia; `views` as the
          detector sees them; `sheets` to look at
recipes   `config` what they may say; `registry` which model is trained by what; `recipes/` those that ship
training  `loop` the one that all runs share; `objectives` losses by name put together; `losses`, `identity`, `ages`
          what they compute; `efficientnet`, `dlib_face` networks that they look through; `optimizers`; `processes`
          several GPUs; `mlflow_log` the record
trainers  `inpainter`, `segmenter`, `unmasker` (both at once), `ear_loops` and `more_masks` (parts of the segmenter),
          `detector`, `landmarker`, `personal` (one person's inpainter; `mask_judge` who is bare)
after     `campaign` overfit, cross-validate, tune; `compare`; `evaluate` what ships, `evaluate_run` a run;
          `instruments` that judge; `calibration` pictures for 8-bit integers; `demo` makes a clip and measures it
"""
