"""Evaluation: does a model draw what the boxes ask for, and what the text asks for?"""
