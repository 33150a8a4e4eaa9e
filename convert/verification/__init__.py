"""Do two models compute the same?"""
