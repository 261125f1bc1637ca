"""Pages and pictures of the records. Importing this draws nothing and loads nothing heavy."""

from fanin import diagnoses, race
from fanin.reports.diagnosis_page import write_diagnosis
from fanin.reports.pictures import write_picture
from fanin.reports.race_page import write_race

race.connect(html=write_race, svg=write_picture, png=write_picture)
diagnoses.connect(html=write_diagnosis)

__all__ = ["write_diagnosis", "write_picture", "write_race"]
