"""One training from its first step to its last.

The words for who takes part in it, from the inside out:

- ``Counters`` (``state``): where a run is; saved with the weights.
- ``Records`` (``records``): the only writer of the run's folder: log, events, state, best weights, samples.
- ``RunCallback`` (``callbacks``): the Keras callback that counts, calls ``Records`` and raises; one for each run.
- ``Watcher`` (``watching``): the caller's object that is called with reports and notes; it decides nothing.
- ``Sampler`` (``callbacks``): writes texts after each evaluation; ``samples.TextSampler`` is one.
- ``Observers`` (``callbacks``): watcher, sampler and the caller's own Keras callbacks, as one argument.
"""
