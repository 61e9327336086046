"""The methods, one room per paper."""
