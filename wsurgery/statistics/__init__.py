"""What a few seeds and many images show: areas under ROC curves, their intervals, and tests."""
