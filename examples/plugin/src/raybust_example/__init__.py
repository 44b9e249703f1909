"""An example plug-in for raybust: the method `logit_squeezing`, the network `conv_mixer`, and the
data set `shapes`."""
