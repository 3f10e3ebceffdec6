"""Assignments: onto which model. One file each; importing the package registers them."""

from equipoise.policies.assignments import certify as certify
from equipoise.policies.assignments import contrast as contrast
from equipoise.policies.assignments import neyman as neyman
from equipoise.policies.assignments import thompson as thompson
from equipoise.policies.assignments import top_two as top_two
from equipoise.policies.assignments import track_and_stop as track_and_stop
from equipoise.policies.assignments import uniform as uniform
