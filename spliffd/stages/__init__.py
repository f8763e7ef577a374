"""The supervisor's stages: what it starts, attaches and keeps alive. Root code; reads no captured byte."""
