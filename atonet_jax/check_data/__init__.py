"""check_data"""
