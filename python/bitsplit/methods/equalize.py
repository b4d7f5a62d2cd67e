"""Cross-layer equalisation (Data-free quantization, ICCV 2019).

Two layers in a row with a positively homogeneous function between them (ReLU, none) compute the same when
channel i of the first is divided by s_i and the second's reading of it multiplied by s_i.  With
s_i = sqrt(r1_i / r2_i), r the largest magnitudes of the first's rows and the second's columns, both have equal
ranges.
"""
